"""One file per command-line verb: flags, then load, call, save."""
