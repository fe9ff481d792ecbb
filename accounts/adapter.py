"""A former path of the authentication backend, which sessions hold (see AUTHENTICATION_BACKENDS)."""

from accounts.backend import FormerBackend as RoleBackend

__all__ = ["RoleBackend"]
