# docker build -t sottovoce . && docker run --rm sottovoce
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends libsndfile1 && rm -rf /var/lib/apt/lists/*
WORKDIR /sottovoce
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir torch==2.13.0 \
    && pip install --no-cache-dir '.[demo]' -c constraints.txt
ENTRYPOINT ["sottovoce"]
CMD ["demo"]
