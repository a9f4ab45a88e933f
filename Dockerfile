FROM oven/bun:1.4.5-slim
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="user-embeddings" \
      org.opencontainers.image.description="Recommends products to each customer of a shop from what they search, view, click and buy" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="docker.io/oven/bun:1.4.5-slim"
WORKDIR /app
COPY package.json bun.lock bunfig.toml ./
RUN bun install --frozen-lockfile --production
COPY tsconfig.json ./
COPY bin ./bin
COPY src ./src
COPY samples ./samples
COPY docs/*.md ./docs/
RUN mkdir /app/data && chown 1000:1000 /app/data
USER 1000:1000
ENV LOG_FORMAT=json
EXPOSE 3000 9464
ENTRYPOINT ["/app/bin/user-embeddings"]
CMD ["up"]
