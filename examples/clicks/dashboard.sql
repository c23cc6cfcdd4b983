-- What a dashboard asks every few seconds: POST /v1/sql, or milepost sql "$(cat dashboard.sql)".
SELECT start AS minute, key AS page, rows AS clicks, figures['users'] AS users
FROM windows
WHERE "window" = 'page_clicks'
ORDER BY minute DESC, clicks DESC
LIMIT 50
