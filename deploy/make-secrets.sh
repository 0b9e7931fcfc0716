#!/bin/sh
# Writes what docker-compose.yml mounts as secrets into ./secrets, and leaves what is there already.
# FAL_KEY in the environment, or in its place the emulator's key. Says which of the two it is.
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
# A real key takes the place of the emulator's; two real ones that differ are for you to decide.
emulator_key=emulator-key
kept=$(cat secrets/fal_key 2>/dev/null || true)
if [ -n "${FAL_KEY:-}" ] && [ -n "$kept" ] && [ "$kept" != "$FAL_KEY" ]; then
    if [ "$kept" != "$emulator_key" ]; then
        echo "secrets/fal_key holds another key than FAL_KEY: remove the file to replace it" >&2
        exit 1
    fi
    rm -f secrets/fal_key
    echo "secrets/fal_key held the emulator's key: replaced by FAL_KEY" >&2
fi
write fal_key "${FAL_KEY:-$emulator_key}"
[ "$(cat secrets/fal_key)" != "$emulator_key" ] ||
    echo "secrets/fal_key is the emulator's key: set FAL_KEY for fal itself" >&2
# Opens the page once MONITOR_TOKEN_FILE=/run/secrets/monitor_token is set.
write monitor_token "$(random)"
