"""Invalid input by category, as people, faulty programs and attackers send it."""

NONSENSE = {
    "nothing": "",
    "blanks": " \t\r\n ",
    "very long": "x" * 10_000,
    "a NUL": "a\x00b",
    "a lone surrogate": "a\ud800b",
    "strange characters": "a\x01\x1b[31m\x7f🦊👩‍👧\u202eb\u2066c\u200bd",
    "a negative number": "-1",
    "a huge number": "9" * 40,
    "an endless number": "1e999",
    "markup": "<script>alert(1)</script>'\"../../etc/%00{0.__class__}%(x)s",
    "an unknown id": "ffffffff-ffff-4fff-bfff-ffffffffffff",
    "a moment after all": "9999-12-31T23:59:59-14:00",
    "a moment before all": "0001-01-01T00:00:00+14:00",
}
