# syntax=docker/dockerfile:1

# Both programs, the C library they are linked to, and root certificates, in an image that holds nothing else: no shell, no
# package manager. Not static: musl's allocator is slow with many threads.
#
#   docker build --tag herald .
#   docker run --rm herald herald-worker --help
#
# The dependencies are a layer of their own, built from what `recipe` keeps of the sources: the manifests and the lock
# file. It is built again when those change, and not with every change of the code.

# Its C compiler builds SQLite and ring.
FROM rust:1.95-slim-bookworm AS toolchain
WORKDIR /src

FROM toolchain AS recipe
COPY . .
# Every crate without its code: an empty library, an empty program where there is one, and an empty file for every test and
# benchmark that a manifest names, without which Cargo takes none of it.
RUN set -eu; \
    for crate in proto gateway worker tests; do \
        find "$crate" -name '*.rs' -delete; \
        mkdir -p "$crate/src"; \
        touch "$crate/src/lib.rs"; \
        named=$(sed -n -e 's|^path = "\(.*\.rs\)"$|\1|p' \
            -e '/^\[\[bench\]\]$/,/^$/ s|^name = "\(.*\)"$|benches/\1.rs|p' "$crate/Cargo.toml"); \
        for file in $named; do install -D /dev/null "$crate/$file"; done; \
    done; \
    for crate in gateway worker; do echo 'fn main() {}' > "$crate/src/main.rs"; done; \
    find . -type f ! -name Cargo.toml ! -name Cargo.lock ! -name '*.rs' -delete

FROM toolchain AS dependencies
COPY --from=recipe /src .
RUN cargo build --release --locked --package herald-gateway --package herald-worker

FROM dependencies AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY proto proto
COPY gateway gateway
COPY worker worker
# The copies carry the times of their files, which may be older than the empty crates built above.
RUN find proto gateway worker -name '*.rs' -exec touch {} + && \
    cargo build --release --locked --package herald-gateway --package herald-worker && \
    install -D --strip --target-directory /out/usr/local/bin \
        target/release/herald-gateway target/release/herald-worker && \
    for library in $(ldd /out/usr/local/bin/* | grep -o '/[^ :]*\.so[^ :]*' | sort -u); do \
        install -D "$library" "/out$library"; \
    done && \
    install -D /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ca-certificates.crt
# What these files are packages of, for whoever looks for known faults in the image.
RUN set -eu; \
    install -D --mode 644 /etc/os-release /out/etc/os-release; \
    mkdir -p /out/var/lib/dpkg/status.d; \
    for package in libc6 libgcc-s1 ca-certificates; do \
        dpkg-query --status "$package" > "/out/var/lib/dpkg/status.d/$package"; \
    done

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="herald" \
      org.opencontainers.image.description="Chat message delivery: herald-gateway and herald-worker" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="scratch"
# Which crates are inside, for whoever makes a bill of materials of the image.
COPY --from=recipe /src/Cargo.lock /usr/share/herald/Cargo.lock
COPY --from=build /out/ /
ENV PATH=/usr/local/bin
USER 65532:65532
EXPOSE 8080 8081
# For runtimes without HTTP probes. A container that runs the worker is given
# `--health-cmd "/usr/local/bin/herald-worker healthcheck"` instead.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/usr/local/bin/herald-gateway", "healthcheck"]
CMD ["/usr/local/bin/herald-gateway"]
