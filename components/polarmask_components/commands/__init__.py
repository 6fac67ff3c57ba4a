"""Commands for people, which are entry points of `polarmask.programs`."""
