-- The way of a request to TorchServe and of its answer. Settings stand above, written by
-- proxy_config.py. One Envoy thread runs this, so what it keeps between requests is shared.

local MAX_AGE = 1 -- seconds that tokens are kept before the file is read again
local BAD_FORM = '{"error": {"code": "bad_form", "message": "the form can\'t be read; ' ..
  'send the image as the bare body, or as the field image of multipart/form-data"}}'
local tokens, read_at = nil, 0

local function refuse(handle, status, code, message, extra)
  handle:streamInfo():dynamicMetadata():set("polarmask", "refused", true)
  local headers = {[":status"] = tostring(status), ["content-type"] = "application/json"}
  for name, value in pairs(extra or {}) do
    headers[name] = value
  end
  handle:respond(headers, '{"error": {"code": "' .. code .. '", "message": "' .. message .. '"}}')
end

local function current_tokens()
  local now = os.time()
  if now - read_at < MAX_AGE and now >= read_at then
    return tokens
  end
  tokens, read_at = nil, now
  local file = io.open(SETTINGS.tokens, "r")
  if file then
    tokens = {}
    for line in file:lines() do
      local token = line:match("^%s*(.-)%s*$")
      if #token > 0 then
        tokens[#tokens + 1] = token
      end
    end
    file:close()
  end
  return tokens
end

-- Takes as long for a token that is wrong in its first character as for one wrong in its last.
local function equal(given, expected)
  local difference = bit.bxor(#given, #expected)
  for i = 1, #given do
    local other = expected:byte((i - 1) % #expected + 1)
    difference = bit.bor(difference, bit.bxor(given:byte(i), other))
  end
  return difference == 0
end

local function is_authorized(headers)
  local scheme, given = (headers:get("authorization") or ""):match("^(%a+) +([^%s]+)$")
  if not scheme or scheme:lower() ~= "bearer" then
    return false
  end
  local found = false
  for _, token in ipairs(tokens) do
    found = equal(given, token) or found
  end
  return found
end

local function decode(text)
  text = text:gsub("+", " ")
  return (text:gsub("%%(%x%x)", function(digits) return string.char(tonumber(digits, 16)) end))
end

-- TorchServe drops the query, so options become headers; nil and what is wrong if they can't.
local function take_options(headers, query)
  for pair in query:gmatch("[^&]+") do
    local key, value = pair:match("^([^=]*)=?(.*)$")
    key, value = decode(key), decode(value)
    if not OPTIONS[key] then
      return "the query has an option that is not known; there are score_threshold, " ..
        "max_instances, categories, mask and return_rays"
    end
    if #value > 1000 or value:find("[^\32-\126]") then
      return key .. " in the query has to be plain ASCII of at most 1000 characters"
    end
    headers:replace("x-" .. key:gsub("_", "-"), value)
  end
end

local function is_prediction(path)
  return path:sub(1, 13) == "/predictions/" or path:sub(1, 11) == "/v1/models/"
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path, query = headers:get(":path"):match("^([^?]*)%??(.*)$")
  if path == "/healthz" and headers:get(":method") == "GET" then
    handle:streamInfo():dynamicMetadata():set("polarmask", "health", true)
    headers:replace(":path", path)
    return
  end
  if not is_prediction(path) then
    return
  end
  if SETTINGS.tokens then
    if not current_tokens() then
      return refuse(handle, 503, "authentication_unavailable",
        "the server can't read its tokens; tell who runs it", {["retry-after"] = "5"})
    end
    if not is_authorized(headers) then
      return refuse(handle, 401, "unauthorized",
        "send the header Authorization: Bearer TOKEN with a valid token",
        {["www-authenticate"] = 'Bearer realm="polarmask"'})
    end
    headers:remove("authorization") -- nobody behind here needs it
  end
  if SETTINGS.mark_of_proxies then
    headers:remove(SETTINGS.mark_of_proxies) -- a stranger's
  end
  -- Said before the body is sent, to those who wait for it.
  if tonumber(headers:get("content-length") or "0") > SETTINGS.body_bytes then
    return refuse(handle, 413, "body_too_large",
      "the request is larger than " .. SETTINGS.body_bytes .. " bytes; send a smaller image")
  end
  if query ~= "" then
    local problem = take_options(headers, query)
    if problem then
      return refuse(handle, 400, "bad_option", problem)
    end
    headers:replace(":path", path)
  end
  -- TorchServe fails without one, and takes what curl says by itself for a form.
  local kind = headers:get("content-type")
  if not kind or kind == "" or kind:lower():find("^application/x%-www%-form%-urlencoded") then
    headers:replace("content-type", "application/octet-stream")
  end
end

function envoy_on_response(handle)
  local mine = handle:streamInfo():dynamicMetadata():get("polarmask")
  if mine and mine["health"] then
    return answer_health(handle)
  end
  local status = tonumber(handle:headers():get(":status"))
  if status < 400 then
    return
  end
  local body = handle:body(true)
  local start = body:getBytes(0, math.min(body:length(), 200))
  if start:find('^%s*{%s*"error"%s*:') then
    return -- said by the handler or by this proxy
  end
  local kind = start:match('"type": *"(%a+)"')
  if status == 500 and kind and kind ~= "InternalServerException" then
    -- Java stumbled over a damaged form before the handler saw it.
    answer(handle, 400, BAD_FORM)
  else
    if status == 503 then
      handle:headers():replace("retry-after", "1")
    end
    answer(handle, status, REFUSALS[status] or REFUSALS[500])
  end
end
