"""Sign-in by the organisation with SAML 2.0 (Web Browser SSO Profile), see docs/decisions/0046.

Only `documents` and `responses` need the extra `saml`. Import them only where needed.
"""
