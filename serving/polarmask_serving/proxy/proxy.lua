-- What Envoy has no filter for: tokens of a file, options of the query, and the shape of TorchServe's
-- own errors. envoy.yaml gives the settings as metadata of the virtual host.
--
-- Not api_key_auth for tokens: its keys are part of Envoy's configuration, so while Envoy runs a
-- replaced Secret would not count, and a removed token would stay valid.

local MAX_AGE = 1 -- seconds that tokens are kept before the file is read again
local BAD_FORM = '{"error": {"code": "bad_form", "message": "the form can\'t be read; ' ..
  'send the image as the bare body, or as the field image of multipart/form-data"}}'
local tokens, read_at = nil, 0 -- one thread runs this, so requests share them

local function refuse(handle, status, code, message, headers)
  handle:streamInfo():dynamicMetadata():set("polarmask", "refused", true)
  headers[":status"], headers["content-type"] = tostring(status), "application/json"
  handle:respond(headers, '{"error": {"code": "' .. code .. '", "message": "' .. message .. '"}}')
end

local function current_tokens(path)
  local now = os.time()
  if now - read_at < MAX_AGE and now >= read_at then
    return tokens
  end
  tokens, read_at = nil, now
  local file = io.open(path or "", "r")
  if file then
    tokens = {}
    for line in file:lines() do
      tokens[#tokens + 1] = line:match("(%S.-)%s*$")
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
        "max_instances, categories, mask and return_rays"
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
  local file = settings:get("tokens")
  if file ~= "" then
    if not current_tokens(file) then
      return refuse(handle, 503, "authentication_unavailable",
        "the server can't read its tokens; tell its administrator", {["retry-after"] = "5"})
    end
    if not is_authorized(headers) then
      return handle:respond(
        {[":status"] = "401", ["www-authenticate"] = 'Bearer realm="polarmask"'}, "")
    end
  end
  if query ~= "" then
    local problem = take_options(headers, query, settings:get("options"))
    if problem then
      return refuse(handle, 400, "bad_option", problem, {})
    end
    headers:replace(":path", path)
  end
  -- TorchServe fails without one, and takes what curl sends by itself for a form.
  local kind = headers:get("content-type")
  if not kind or kind == "" or kind:lower():find("^application/x%-www%-form%-urlencoded") then
    headers:replace("content-type", "application/octet-stream")
  end
end

function envoy_on_response(handle)
  local status = handle:headers():get(":status")
  if tonumber(status) < 400 then
    return
  end
  local body = handle:body(true) -- waits for it, which ends the life of objects from before
  local headers, settings = handle:headers(), handle:virtualHost():metadata()
  local start = body:getBytes(0, math.min(body:length(), 200))
  if start:find('^%s*{%s*"error"%s*:') then
    return -- written by the handler or by this proxy
  end
  local answer = settings:get("refusals")[status] or settings:get("refusals")["500"]
  local kind = start:match('"type": *"(%a+)"')
  if status == "500" and kind and kind ~= "InternalServerException" then
    -- Java stumbled over a damaged form before the handler saw it.
    headers:replace(":status", "400")
    answer = BAD_FORM
  elseif status == "503" then
    headers:replace("retry-after", "1")
  end
  headers:replace("content-type", "application/json")
  headers:replace("content-length", tostring(body:setBytes(answer)))
end
