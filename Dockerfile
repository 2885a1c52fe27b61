# docker build -t tidegate .
# docker run -p 127.0.0.1:1883:1883 -v tidegate:/var/lib/tidegate -v ./routes.yaml:/etc/tidegate/routes.yaml:ro tidegate

FROM rust:1.95-bookworm AS build
WORKDIR /source
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/source/target \
    cargo build --release --locked && install -D target/release/tidegate /image/usr/bin/tidegate
# The final image has no shell to make folders with. 65532 is its user `nonroot`.
RUN install -D -m 644 packaging/container-routes.yaml /image/etc/tidegate/routes.yaml \
 && install -d -o 65532 -g 65532 -m 750 /data

# Of the same Debian as the build: glibc, libgcc, OpenSSL, CA certificates, and nothing else.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /image/ /
COPY --from=build --chown=65532:65532 /data /var/lib/tidegate
USER 65532:65532
VOLUME /var/lib/tidegate
EXPOSE 1883
# Ready, and every ledger balanced; asked through the admin socket in the data folder.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["/usr/bin/tidegate", "status", "--config", "/etc/tidegate/routes.yaml"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/tidegate"]
CMD ["run", "--config", "/etc/tidegate/routes.yaml"]
