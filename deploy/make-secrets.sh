#!/bin/sh
# Writes what docker-compose.yml mounts as secrets into ./secrets, and leaves what is there already.
# FAL_KEY in the environment, or in its place the emulator's key.
set -eu
umask 077
mkdir -p secrets
write() {
    [ -s "secrets/$1" ] || printf '%s' "$2" > "secrets/$1"
    # The containers' users have to read it; nobody else gets past the directory.
    chmod 444 "secrets/$1"
}
random() {
    od -An -N24 -tx1 /dev/urandom | tr -d ' \n'
}
write postgres_password "$(random)"
write database_url "postgresql+psycopg://videos:$(cat secrets/postgres_password)@postgres/videos"
write fal_key "${FAL_KEY:-emulator-key}"
# Opens the page once MONITOR_TOKEN_FILE=/run/secrets/monitor_token is set.
write monitor_token "$(random)"
