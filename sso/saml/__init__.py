"""Sign-in by the organisation through SAML 2.0 (Web Browser SSO Profile), as docs/decisions/0046 has it.

Only `parsing`, `metadata` and `responses` need the extra `saml`; they are imported by who needs them only.
"""
