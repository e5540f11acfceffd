-- title: Overall activity
-- about: Calls, minutes and messages of each person, and their change against the period of equal length before.
-- chart: bar calls, messages by person
-- records: calls by person
-- records: messages by person
WITH activity AS (
    SELECT person, department, started >= $from AS now, 1 AS calls, duration_s / 60.0 AS minutes, 0 AS messages
    FROM calls WHERE started >= $prior AND started < $to
    UNION ALL
    SELECT person, department, at >= $from AS now, 0 AS calls, 0.0 AS minutes, 1 AS messages
    FROM messages WHERE at >= $prior AND at < $to
), totals AS (
    SELECT
        person,
        department,
        sum(CASE WHEN now THEN calls ELSE 0 END) AS calls,
        sum(CASE WHEN now THEN 0 ELSE calls END) AS calls_before,
        sum(CASE WHEN now THEN minutes ELSE 0.0 END) AS minutes,
        sum(CASE WHEN now THEN 0.0 ELSE minutes END) AS minutes_before,
        sum(CASE WHEN now THEN messages ELSE 0 END) AS messages,
        sum(CASE WHEN now THEN 0 ELSE messages END) AS messages_before
    FROM activity
    GROUP BY person, department
)
SELECT
    person,
    department,
    calls,
    calls_before,
    round(100.0 * (calls - calls_before) / nullif(calls_before, 0), 1) AS calls_change_pct,
    round(minutes, 1) AS minutes,
    round(minutes_before, 1) AS minutes_before,
    round(100.0 * (minutes - minutes_before) / nullif(minutes_before, 0.0), 1) AS minutes_change_pct,
    messages,
    messages_before,
    round(100.0 * (messages - messages_before) / nullif(messages_before, 0), 1) AS messages_change_pct
FROM totals
ORDER BY calls + messages DESC, person
