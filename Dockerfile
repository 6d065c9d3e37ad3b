# Two images of one binary: `webhook` holds nothing else, `agent` also the tools that write a kernel's rules.
#
#   make image           builds both with docker buildx
#   make image-offline   makes the same two from the binary and Debian's packages, and pulls nothing: it reads the last two
#                        stages from here (image/archive), so keep to ARG, LABEL, COPY --from, ENV, USER, ENTRYPOINT there

FROM rust:1.95-bookworm AS build
WORKDIR /source
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
# Inside `pinhole demo`.
COPY examples examples
COPY image/build-binary image/
RUN image/build-binary /binary

FROM debian:bookworm-slim AS tools
COPY image/root-from-packages /usr/local/bin/
RUN root-from-packages /tools iptables nftables conntrack

FROM scratch AS agent
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="pinhole-agent" \
      org.opencontainers.image.description="Programs the NAT rules of a Kubernetes node that pods were granted" \
      org.opencontainers.image.source="https://github.com/pinhole-dev/pinhole" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=tools /tools/ /
COPY --from=build /binary/pinhole /usr/bin/pinhole
ENV PATH=/usr/sbin:/usr/bin
ENTRYPOINT ["/usr/bin/pinhole"]

FROM scratch AS webhook
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="pinhole-webhook" \
      org.opencontainers.image.description="Refuses or grants external ports at kubectl apply" \
      org.opencontainers.image.source="https://github.com/pinhole-dev/pinhole" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /binary/pinhole /pinhole
USER 65532:65532
ENTRYPOINT ["/pinhole"]
