"""The commands of `tlm`, one file for each subject."""
