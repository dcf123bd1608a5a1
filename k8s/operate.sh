#!/bin/sh
# Runs a command of herald-worker in the cluster, with an operator's credentials, and prints what it says:
#
#   k8s/operate.sh topology plan --partitions 16
#   k8s/operate.sh deadletter list
set -eu

kubectl="${KUBECTL:-kubectl} --namespace herald"
name=herald-operator-$(date +%s)

words=
for word; do
    case $word in *[\"\\]*) echo "not in a command: $word" >&2 && exit 2 ;; esac
    words=$words${words:+,}\"$word\"
done
patch='[{"op": "replace", "path": "/spec/template/spec/containers/0/args", "value": ['$words']}]'

$kubectl create job "$name" --from=cronjob/herald-operator --dry-run=client --output yaml |
    $kubectl patch --local --filename - --type json --patch "$patch" --output yaml |
    $kubectl create --filename - >&2
trap '$kubectl delete job "$name" --wait=false >&2' EXIT
$kubectl logs --follow --pod-running-timeout=2m "job/$name"
$kubectl wait --for=condition=complete --timeout=10s "job/$name" >&2
