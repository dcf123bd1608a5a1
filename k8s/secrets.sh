#!/bin/sh
# Makes the Secrets that an overlay asks for, and prints them: pipe them into `kubectl apply -f -`. It asks the cluster
# first, and keeps every password, key and certificate that is there; whatever is missing it makes at random.
#
#   k8s/secrets.sh dev
#   DATABASE_URL='postgres://herald:…@db.example/herald?sslmode=verify-full&sslrootcert=/etc/herald/database/ca.crt' \
#     DATABASE_CA=db-ca.crt JWKS=jwks.json k8s/secrets.sh prod
#
#   k8s/secrets.sh prod certificates     a new certificate for the NATS servers, of the CA that they have
#   k8s/secrets.sh prod passwords        new passwords for NATS's users
#
# What the environment says:
#
#   DATABASE_URL, DATABASE_CA, JWKS   for prod; those that are in the cluster are kept if they are not said again
#   UNVERIFIED_DATABASE=1             takes a DATABASE_URL without sslmode=verify-full
#   CA_CERT, CA_KEY                   files with a CA of your own; without them one is made, and kept in herald-nats-ca
#   SAN                               more names in the servers' certificate, each time that one is made:
#                                     SAN=DNS:nats.example,IP:10.0.0.1
#   DAYS, CA_DAYS                     for how long certificates hold
#   OFFLINE=1                         asks no cluster: nothing is kept, all is made
set -eu

overlay=${1:-}
mode=${2:-missing}
days=${DAYS:-825}
ca_days=${CA_DAYS:-3650}
kubectl=${KUBECTL:-kubectl}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    echo "$*" >&2
    exit 1
}

case $overlay/$mode in
dev/missing | dev/passwords | prod/missing | prod/passwords | prod/certificates) ;;
*)
    echo "usage: $0 dev|prod [passwords], or $0 prod certificates" >&2
    exit 2
    ;;
esac

# Writes what a Secret in the cluster has under a key into a file; no file if it has nothing there. A cluster that can't
# be asked ends the script: it could hold what must not be replaced.
keep() {
    [ -z "${OFFLINE:-}" ] || return 0
    path=$(printf '%s' "$2" | sed 's/\./\\./g')
    "$kubectl" get secret "$1" --namespace herald --ignore-not-found --output "jsonpath={.data.$path}" >"$work/asked"
    [ ! -s "$work/asked" ] || openssl base64 -d -A -in "$work/asked" -out "$3"
}

random() {
    [ -s "$1" ] || openssl rand -hex 24 | tr -d '\n' >"$1"
}

# Prints a Secret with these files, given as KEY=FILE.
secret() {
    name=$1
    shift
    for file; do
        shift
        set -- "$@" "--from-file=$file"
    done
    "$kubectl" create secret generic "$name" --namespace herald --dry-run=client --output yaml "$@"
    echo ---
}

# The CA: one's own, or the cluster's, or a new one. A cluster that has certificates of a CA whose key is not known here
# keeps them.
authority() {
    if [ -n "${CA_CERT:-}${CA_KEY:-}" ]; then
        cp "${CA_CERT:?the file with the certificate of CA_KEY}" "$work/ca.crt"
        cp "${CA_KEY:?the file with the key of CA_CERT}" "$work/ca.key"
        return 0
    fi
    keep herald-nats-ca ca.crt "$work/ca.crt"
    keep herald-nats-ca ca.key "$work/ca.key"
    [ ! -s "$work/ca.key" ] || return 0
    [ ! -s "$work/kept.crt" ] ||
        fail "The CA of the certificate in herald-nats-tls is not known: set CA_CERT and CA_KEY to its files."
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days "$ca_days" -subj /CN=herald-nats-ca \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign \
        -keyout "$work/ca.key" -out "$work/ca.crt" 2>"$work/openssl.log"
    # No pod mounts it: it is here for the next certificate.
    secret herald-nats-ca ca.crt="$work/ca.crt" ca.key="$work/ca.key"
}

# One certificate for all servers: clients ask for a server's name, servers for each other's.
certificate() {
    names=DNS:localhost${SAN:+,$SAN}
    for server in 0 1 2; do
        for domain in "" .herald .herald.svc .herald.svc.cluster.local; do
            names=$names,DNS:herald-nats-$server.herald-nats$domain
        done
    done
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj /CN=herald-nats \
        -keyout "$work/tls.key" -out "$work/tls.csr" 2>"$work/openssl.log"
    printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n' "$names" \
        >"$work/tls.ext"
    openssl x509 -req -in "$work/tls.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAcreateserial -days "$days" \
        -extfile "$work/tls.ext" -out "$work/tls.crt" 2>"$work/openssl.log"
    secret herald-nats-tls tls.crt="$work/tls.crt" tls.key="$work/tls.key" ca.crt="$work/ca.crt"
}

# Makes the servers' certificate if it is missing or asked for. Afterwards ca.crt is what clients trust.
certificates() {
    keep herald-nats-tls tls.crt "$work/kept.crt"
    if [ -s "$work/kept.crt" ] && [ "$mode" != certificates ]; then
        keep herald-nats-tls ca.crt "$work/ca.crt"
    else
        authority
        certificate
    fi
}

# The passwords of NATS's users, each for its pods and all for the servers.
users() {
    : >"$work/users.conf"
    for role in gateway worker operator system; do
        password=$work/$role
        [ "$mode" = passwords ] || keep "herald-nats-$role" password "$password"
        random "$password"
        printf '%s_PASSWORD: "%s"\n' "$(echo "$role" | tr '[:lower:]' '[:upper:]')" "$(cat "$password")" \
            >>"$work/users.conf"
        if [ "$overlay" = prod ]; then
            secret "herald-nats-$role" password="$password" ca.crt="$work/ca.crt"
        else
            secret "herald-nats-$role" password="$password"
        fi
    done
    secret herald-nats-users users.conf="$work/users.conf"
}

# The server took its password over when its disk was empty: it is never made anew here.
postgres() {
    keep herald-postgres password "$work/postgres"
    random "$work/postgres"
    secret herald-postgres password="$work/postgres"
    printf 'postgres://herald:%s@herald-postgres/herald' "$(cat "$work/postgres")" >"$work/url"
    secret herald-database url="$work/url"
    keep herald-auth hs256-secret "$work/hs256"
    random "$work/hs256"
    secret herald-auth hs256-secret="$work/hs256"
}

# What nobody can make but the site: where the database is, and whose tokens count.
given() {
    keep herald-database url "$work/url"
    keep herald-database ca.crt "$work/database.crt"
    keep herald-auth jwks.json "$work/jwks.json"
    if [ -n "${DATABASE_URL:-}" ]; then
        case "$DATABASE_URL&" in
        *[?\&]sslmode=verify-full\&*) ;;
        *)
            [ -n "${UNVERIFIED_DATABASE:-}" ] ||
                fail "DATABASE_URL has no sslmode=verify-full: whoever is between could pose as the database." \
                    "UNVERIFIED_DATABASE=1 takes it all the same."
            ;;
        esac
        printf '%s' "$DATABASE_URL" >"$work/url"
    fi
    [ -z "${DATABASE_CA:-}" ] || cp "$DATABASE_CA" "$work/database.crt"
    [ -z "${JWKS:-}" ] || cp "$JWKS" "$work/jwks.json"
    [ -s "$work/url" ] || fail "DATABASE_URL: where PostgreSQL is"
    [ -s "$work/database.crt" ] || fail "DATABASE_CA: the file with its CA"
    [ -s "$work/jwks.json" ] || fail "JWKS: the file with the keys of tokens"
    secret herald-database url="$work/url" ca.crt="$work/database.crt"
    secret herald-auth jwks.json="$work/jwks.json"
}

make() {
    case $overlay/$mode in
    prod/certificates) certificates ;;
    prod/passwords)
        keep herald-nats-tls ca.crt "$work/ca.crt"
        [ -s "$work/ca.crt" ] || fail "There is no herald-nats-tls yet: run $0 prod first."
        users
        ;;
    prod/missing)
        given
        certificates
        users
        ;;
    dev/passwords) users ;;
    dev/missing)
        postgres
        users
        ;;
    esac
}

# All or nothing.
make >"$work/secrets"
cat "$work/secrets"
