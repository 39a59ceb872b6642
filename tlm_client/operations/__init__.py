"""Every operation of the API, written once as steps (see tlm_client.steps); both clients are made of these."""
