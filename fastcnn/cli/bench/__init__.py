"""`fastcnn bench` and its subcommands."""
