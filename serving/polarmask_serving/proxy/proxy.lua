-- What Envoy has no filter for: tokens of a file, options of the query, and the shape of TorchServe's
-- own errors. envoy.yaml gives the settings as metadata of the virtual host.
--
-- An error in here lets the request go on, so a request gets to a model only with the mark `checked`,
-- which is set last. Without it, envoy.yaml answers 503: no token can be read, or this script failed.
--
-- Not api_key_auth for tokens: its keys are part of Envoy's configuration, so while Envoy runs a
-- replaced Secret would not count, and a removed token would stay valid.

local MAX_AGE = 1 -- seconds that tokens are kept before the file is read again
local tokens, read_at = nil, 0 -- one thread runs this, so requests share them

local function current_tokens(path)
  local now = os.time()
  if now - read_at < MAX_AGE and now >= read_at then
    return tokens
  end
  tokens, read_at = {}, now -- what fails below leaves none
  local found = {}
  for line in io.lines(path) do
    found[#found + 1] = line:match("(%S.-)%s*$")
  end
  tokens = found
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

local function is_authorized(headers, tokens)
  local scheme, given = (headers:get("authorization") or ""):match("^(%a+) +([^%s]+)$")
  local found = false
  for _, token in ipairs(tokens) do
    found = equal(given or "", token) or found
  end
  return found and scheme:lower() == "bearer"
end

local function decode(text)
  text = text:gsub("+", " ")
  return (text:gsub("%%(%x%x)", function(digits) return string.char(tonumber(digits, 16)) end))
end

-- TorchServe drops the query, so options become headers. Returns what is wrong, if anything is.
local function take_options(headers, query, options)
  for pair in query:gmatch("[^&]+") do
    local key, value = pair:match("^([^=]*)=?(.*)$")
    key, value = decode(key), decode(value)
    if not options[key] then
      return "the query has an option that is not known; there are score_threshold, " ..
        "max_instances, categories, mask, return_rays and tile"
    end
    if #value > 1000 or value:find("[^\32-\126]") then
      return key .. " in the query has to be plain ASCII of at most 1000 characters"
    end
    headers:replace("x-" .. key:gsub("_", "-"), value)
  end
end

function envoy_on_request(handle)
  local headers, settings = handle:headers(), handle:virtualHost():metadata()
  local path, query = headers:get(":path"):match("^([^?]*)%??(.*)$")
  if not path:find("^/predictions/") and not path:find("^/v1/models/") then
    return
  end
  local metadata = handle:streamInfo():dynamicMetadata()
  local file = settings:get("tokens")
  if file ~= "" then
    local known = current_tokens(file)
    if #known == 0 then
      return
    end
    if not is_authorized(headers, known) then
      return handle:respond(
        {[":status"] = "401", ["www-authenticate"] = 'Bearer realm="polarmask"'}, "")
    end
  end
  if query ~= "" then
    local problem = take_options(headers, query, settings:get("options"))
    if problem then
      metadata:set("polarmask", "refused", true)
      return handle:respond(
        {[":status"] = "400", ["content-type"] = "application/json"},
        '{"error": {"code": "bad_option", "message": "' .. problem .. '"}}')
    end
    headers:replace(":path", path)
  end
  metadata:set("polarmask", "checked", true)
end

function envoy_on_response(handle)
  local status = handle:headers():get(":status")
  -- What this proxy answers itself has its shape, and a HEAD gets no body.
  if tonumber(status) < 400 or not handle:headers():get("x-envoy-upstream-service-time") then
    return
  end
  local body = handle:body(true) -- waits for it, which ends the life of objects from before
  local headers, settings = handle:headers(), handle:virtualHost():metadata()
  local start = body:getBytes(0, math.min(body:length(), 200))
  if start:find('^%s*{%s*"error"%s*:') then
    return -- written by the handler
  end
  local answer = settings:get("refusals")[status] or settings:get("refusals")["500"]
  if status == "503" then
    headers:replace("retry-after", "1")
  end
  headers:replace("content-type", "application/json")
  headers:replace("content-length", tostring(body:setBytes(answer)))
end
