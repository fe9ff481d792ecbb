"""Counters of the proxy for /metrics; multi-process by prometheus-client's own means."""

from prometheus_client import Counter, Histogram

CALLS = Counter("gateway_calls", "MCP requests with a known token", ("outcome", "deny_reason"))
STRANGERS = Counter("gateway_unknown_tokens", "MCP requests without a token, or with one nobody knows")
UNAVAILABLE = Counter("gateway_unavailable", "MCP requests answered 503", ("why",))
SECONDS = Histogram(
    "gateway_call_seconds",
    "Time from the arrival of an MCP request to its answer",
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120),
)
BATCHES = Histogram(
    "gateway_rows_per_commit", "Rows of calls that shared one commit", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
)
