-- Beside predictions: health and metrics, for the cluster's own programs.

function envoy_on_request(handle)
  local headers = handle:headers()
  if headers:get(":path") == "/healthz" and headers:get(":method") == "GET" then
    handle:streamInfo():dynamicMetadata():set("polarmask", "health", true)
  end
end

function envoy_on_response(handle)
  local mine = handle:streamInfo():dynamicMetadata():get("polarmask")
  if mine and mine["health"] then
    answer_health(handle)
  end
end
