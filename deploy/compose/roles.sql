-- Run by the image of PostgreSQL when it makes the database, as its owner: the role that serves, and owns nothing.
\set password `cat /run/secrets/run_password`
CREATE ROLE gateway_run LOGIN PASSWORD :'password';
