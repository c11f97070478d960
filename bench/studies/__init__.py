"""Questions beyond the table: cold start, what each technique adds, how far from the machine's ceilings, each convolution's implementations."""
