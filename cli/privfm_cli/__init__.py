"""The `privfm` command."""
