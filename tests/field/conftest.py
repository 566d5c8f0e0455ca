"""The doors that people use: a running service, and the programs that read a file."""

from tests.service.conftest import _shared_site, make_site, site

__all__ = ["_shared_site", "make_site", "site"]
