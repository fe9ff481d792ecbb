"""The gateway's external promises, tested from outside.

The tests share one running workspace (`manage.py serve`, two workers, its own database). They set it up through REST
and pages, and test it over HTTP. No test or helper imports the product; `test_folder.py` checks that. The tests know
only the URLs in docs/ and the labels on pages, and expect the refusals of docs/reference/decision-order.md. So a
refactoring needs no change here: if a test fails, a promise is broken. Change a test only if docs/ change a promise.

PostgreSQL is used directly only where no interface can help: to make the log unwritable, to let time pass, to forge a
checkpoint, and to search rows for secrets.
"""
