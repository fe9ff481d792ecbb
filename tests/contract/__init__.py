"""What the gateway promises to those outside, tested from outside.

One running workspace (`manage.py serve`, two workers, a database of its own) is set up over REST and pages, and asked
over HTTP. Nothing of the product is imported here, nor a helper that does, and `test_folder.py` checks that. Addresses
are those of docs/, or found on pages by their labels; refusals are those of docs/reference/error-codes.md and
decision-order.md.

So these tests hold whatever becomes of the code behind them: do not edit them when code moves. One that fails after
a refactoring has found a promise that is broken. They change when docs/ promise something else.

PostgreSQL is asked directly only for what no interface can do: to make the log unwritable, to let time pass, to forge
a checkpoint, and to look for secrets in rows.
"""
