-- Creates the role that serves and owns no tables. The PostgreSQL image runs this as the owner, once, when it creates
-- the database.
\set password `cat /run/secrets/run_password`
CREATE ROLE gateway_run LOGIN PASSWORD :'password';
