"""Sign-in by the organisation with SAML 2.0 (Web Browser SSO Profile), see docs/decisions/0046.

Only the modules `documents` and `responses` need the extra `saml`; they are imported only where needed.
"""
