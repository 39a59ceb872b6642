"""The commands of `tlm`, one file for each thing they are about."""
