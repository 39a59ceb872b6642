"""Long runs: what a job's model is worth. Each may be stopped and started again; finished parts are kept."""
