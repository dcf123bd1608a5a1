"""Checks built manifests against schemas, strictly: no unknown field, no wrong value.

usage: schemas.py NEWEST OLDEST NODE_FOLDER FILE...

Kubernetes' own kinds are checked against two of its versions, custom resources against their definitions (in two ways:
by their validators, which know values, and by a type checker, which knows every field).
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import kubernetes_validate
import yaml

# Where the node packages keep the kinds of an API group.
PACKAGES = {
    "keda.sh": "@kubernetes-models/keda",
    "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
    "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
}


def name(object):
    return f"{object['kind']} {object['metadata']['name']}"


def main(newest, oldest, node_folder, *files):
    errors, custom, checked = [], {}, 0
    seen = set()
    for file in files:
        objects = [object for object in yaml.safe_load_all(open(file)) if object]
        if not objects:
            errors.append(f"{file}: there is nothing in it")
        for object in objects:
            text = json.dumps(object, sort_keys=True)
            if text in seen:
                continue
            seen.add(text)
            checked += 1
            group = object["apiVersion"].rpartition("/")[0]
            if group in PACKAGES:
                custom[text] = (file, object)
                continue
            for version in (newest, oldest):
                try:
                    kubernetes_validate.validate(object, version, strict=True)
                except Exception as error:  # its classes differ by what is wrong
                    where = "/".join(str(step) for step in getattr(error, "path", []))
                    what = getattr(error, "message", error)
                    errors.append(f"{file}: {name(object)}, Kubernetes {version}: {where}: {what}")
    errors += check_custom(node_folder, list(custom.values()))
    for error in errors:
        print(error, file=sys.stderr)
    print(f"schemas: {checked} objects ({len(custom)} of them custom), {len(errors)} errors")
    return 1 if errors else 0


def check_custom(node_folder, found):
    imports, bodies = [], []
    for number, (file, object) in enumerate(found):
        group, _, version = object["apiVersion"].rpartition("/")
        kind = object["kind"]
        imports.append(f"import {{ {kind} as K{number} }} from '{PACKAGES[group]}/{group}/{version}/{kind}';")
        fields = {key: value for key, value in object.items() if key not in ("apiVersion", "kind")}
        bodies.append(
            f"try {{ new K{number}({json.dumps(fields)}).validate(); }} catch (error) "
            f"{{ failed({json.dumps(f'{file}: {name(object)}')}, error); }}"
        )
    program = "\n".join(
        imports
        + ["declare const console: any, process: any;"]
        + ["function failed(what: string, error: any) { console.log(`${what}: ${error.message}`); }"]
        + bodies
    )
    with tempfile.TemporaryDirectory(dir=node_folder) as folder:
        source = pathlib.Path(folder, "custom.mts")
        source.write_text(program)
        compiler = pathlib.Path(node_folder, "node_modules/typescript/bin/tsc")
        options = "--strict --skipLibCheck --target es2022 --module nodenext --moduleResolution nodenext".split()
        typed = subprocess.run(["node", compiler, *options, source], capture_output=True, text=True)
        errors = typed.stdout.splitlines() if typed.returncode else []
        run = subprocess.run(["node", source.with_suffix(".mjs")], capture_output=True, text=True)
        errors += run.stdout.splitlines()
        if run.returncode:
            errors.append(f"the validators can't be run: {run.stderr}")
    return errors


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
