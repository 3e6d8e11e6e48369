#!/usr/bin/env bash
# Create the topics of a file that are missing: create-topics.sh BOOTSTRAP FILE. Existing ones stay as they are.
# For the Kafka image, which has no Python; KAFKA_TOPICS_COMMAND names another kafka-topics.sh.
set -euo pipefail
bootstrap=$1
file=$2
command=${KAFKA_TOPICS_COMMAND:-/opt/kafka/bin/kafka-topics.sh}

# Not standard input: the command would read the lines that follow.
while read -r -u 3 name partitions configuration; do
    if [[ -z $name || $name == \#* ]]; then
        continue
    fi
    options=()
    for pair in $configuration; do
        options+=(--config "$pair")
    done
    "$command" --bootstrap-server "$bootstrap" --create --if-not-exists \
        --topic "$name" --partitions "$partitions" "${options[@]}"
done 3< "$file"
