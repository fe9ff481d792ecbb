"""Compare the speed of the gateway with a server alone and with nginx: `python -m bench`."""
