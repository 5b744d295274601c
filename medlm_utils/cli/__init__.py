"""The command line `medlm`: one module for each group of commands."""
