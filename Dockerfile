FROM oven/bun:1.4.5-slim
WORKDIR /app
COPY package.json bun.lock bunfig.toml ./
RUN bun install --frozen-lockfile --production
COPY tsconfig.json ./
COPY src ./src
COPY samples ./samples
COPY docs/*.md ./docs/
RUN mkdir /app/data && chown 1000:1000 /app/data
USER 1000:1000
ENV LOG_FORMAT=json
EXPOSE 3000 9464
ENTRYPOINT ["bun", "src/programs/main.ts"]
CMD ["up"]
