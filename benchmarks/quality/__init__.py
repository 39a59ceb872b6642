"""Quality of trained models. The programs run for hours; an interrupted program resumes with its next stage."""
