"""Training: the loop, what a killed run needs to go on, and what a finished one leaves."""
