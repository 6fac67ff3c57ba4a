"""Trying a new model on live requests of a cluster; `deploy` works without it."""
