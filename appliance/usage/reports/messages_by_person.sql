-- title: Messages by person
-- about: How many messages each person sent and received, with how many parties, and their size.
-- chart: bar sent, received by person
-- records: messages by person
SELECT
    person,
    count(*) AS messages,
    count(*) FILTER (WHERE direction = 'out') AS sent,
    count(*) FILTER (WHERE direction = 'in') AS received,
    count(DISTINCT party) AS parties,
    sum(size_bytes) AS bytes,
    max(at) AS latest
FROM messages
WHERE at >= $from AND at < $to
GROUP BY person
ORDER BY messages DESC, person
