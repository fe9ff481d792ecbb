"""How fast the gateway is beside a server alone and nginx before it: `python -m bench`."""
