#!/bin/bash
# Needs curl, jq, and the current token in GATEWAY_TOKEN.
set -euo pipefail
umask 077

# The token authenticates its own rotation; the old value stops working at once.
NEW_TOKEN=$(curl --silent --fail \
  -X POST "<mark>{{ rotate_url }}</mark>" \
  -H "Authorization: Bearer ${GATEWAY_TOKEN}" | jq -r '.token')

# Store the new value before anything else, for example:
#   gh secret set GATEWAY_TOKEN --body "$NEW_TOKEN"
printf '%s' "$NEW_TOKEN" &gt; gateway-token
