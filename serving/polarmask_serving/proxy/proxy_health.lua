-- Health: TorchServe's management describes a model; it is well if a worker of it is ready.

local function answer(handle, status, body)
  handle:headers():replace(":status", tostring(status))
  handle:headers():replace("content-type", "application/json")
  local size = handle:body(true):setBytes(body)
  handle:headers():replace("content-length", tostring(size))
end

local function answer_health(handle)
  local body = handle:body(true)
  local text = body:getBytes(0, body:length())
  if handle:headers():get(":status") == "200" and text:find('"status": *"READY"') then
    local version = text:match('"modelVersion": *"([^"\\]*)"')
    answer(handle, 200, '{"status": "ready", "version": "' .. (version or "") .. '"}')
  else
    handle:headers():replace("retry-after", "1")
    answer(handle, 503, '{"error": {"code": "not_ready", "message": "no worker is ready yet"}}')
  end
end
