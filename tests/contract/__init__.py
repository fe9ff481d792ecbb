"""The gateway's external promises, tested from outside.

One running workspace (`manage.py serve`, two workers, its own database) is set up over REST and pages, and tested over
HTTP. No test or helper here imports the product; `test_folder.py` checks that. The tests take addresses from docs/, or
find them on pages by their labels, and expect the refusals of docs/reference/decision-order.md. So a refactoring never
changes these tests: if a test fails, a promise is broken. The tests change only when docs/ change a promise.

PostgreSQL is used directly only where no interface can help: to make the log unwritable, to let time pass, to forge a
checkpoint, and to search rows for secrets.
"""
