"""The *Incident* pages: calls and remaining access of an app, a person or a token, and a button to stop it."""
