-- title: Calls by person and carrier
-- about: Who calls how much, on which carrier: calls made, received and missed, and minutes spoken.
-- chart: bar minutes by person, carrier
-- records: calls by person, carrier
SELECT
    person,
    carrier,
    count(*) AS calls,
    count(*) FILTER (WHERE direction = 'out') AS made,
    count(*) FILTER (WHERE direction = 'in' AND answered IS NOT NULL) AS received,
    count(*) FILTER (WHERE direction = 'in' AND answered IS NULL) AS missed,
    round(sum(duration_s) / 60.0, 1) AS minutes,
    max(started) AS latest
FROM calls
WHERE started >= $from AND started < $to
GROUP BY person, carrier
ORDER BY minutes DESC, calls DESC, person, carrier
