#!/bin/sh
# Makes the Secrets that an overlay asks for, and prints them: pipe them into `kubectl apply -f -`. Passwords and keys are
# random, so a second run makes others: keep what this prints, or make the Secrets with a secret manager of your own.
#
#   k8s/secrets.sh dev
#   DATABASE_URL='postgres://herald:…@db.example/herald?sslmode=verify-full&sslrootcert=/etc/herald/database/ca.crt' \
#     DATABASE_CA=db-ca.crt JWKS=jwks.json k8s/secrets.sh prod
#
# SAN adds names to the NATS servers' certificate, as openssl spells them: SAN=DNS:nats.example,IP:10.0.0.1
set -eu

overlay=${1:-}
days=${DAYS:-825}
kubectl=${KUBECTL:-kubectl}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

secret() {
    name=$1
    shift
    "$kubectl" create secret generic "$name" --namespace herald --dry-run=client --output yaml "$@"
    echo ---
}

random() {
    openssl rand -hex 24
}

# A CA of its own, and one certificate for all servers: clients ask for a server's name, servers for each other's.
certificates() {
    names=DNS:localhost${SAN:+,$SAN}
    for server in 0 1 2; do
        for domain in "" .herald .herald.svc .herald.svc.cluster.local; do
            names=$names,DNS:herald-nats-$server.herald-nats$domain
        done
    done
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days "$days" -subj /CN=herald-nats-ca \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign \
        -keyout "$work/ca.key" -out "$work/ca.crt" 2>"$work/openssl.log"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj /CN=herald-nats \
        -keyout "$work/tls.key" -out "$work/tls.csr" 2>"$work/openssl.log"
    printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=CA:FALSE\n' "$names" \
        >"$work/tls.ext"
    openssl x509 -req -in "$work/tls.csr" -CA "$work/ca.crt" -CAkey "$work/ca.key" -CAcreateserial -days "$days" \
        -extfile "$work/tls.ext" -out "$work/tls.crt" 2>"$work/openssl.log"
}

case $overlay in
dev)
    database=$(random)
    secret herald-postgres --from-literal=password="$database"
    secret herald-database --from-literal=url="postgres://herald:$database@herald-postgres/herald"
    secret herald-auth --from-literal=hs256-secret="$(random)"
    set --
    ;;
prod)
    : "${DATABASE_URL:?where PostgreSQL is}" "${DATABASE_CA:?the file with its CA}" "${JWKS:?the file with the keys of tokens}"
    secret herald-database --from-literal=url="$DATABASE_URL" --from-file=ca.crt="$DATABASE_CA"
    secret herald-auth --from-file=jwks.json="$JWKS"
    certificates
    secret herald-nats-tls --from-file=tls.crt="$work/tls.crt" --from-file=tls.key="$work/tls.key" \
        --from-file=ca.crt="$work/ca.crt"
    set -- --from-file=ca.crt="$work/ca.crt"
    ;;
*)
    echo "usage: $0 dev|prod" >&2
    exit 2
    ;;
esac

: >"$work/users.conf"
for role in gateway worker operator system; do
    password=$(random)
    printf '%s_PASSWORD: "%s"\n' "$(echo "$role" | tr '[:lower:]' '[:upper:]')" "$password" >>"$work/users.conf"
    secret "herald-nats-$role" --from-literal=password="$password" "$@"
done
secret herald-nats-users --from-file=users.conf="$work/users.conf"
