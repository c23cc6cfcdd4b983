// Runs a plain Node.js handler over the Lambda Runtime API. Milepost writes this file beside each function and starts it.
//
// One socket is kept open; the server is Milepost's own, so every answer has a Content-Length.
import net from 'node:net'
import fs from 'node:fs'
import path from 'node:path'
import util from 'node:util'
import { pathToFileURL } from 'node:url'

const env = process.env
const host = env.AWS_LAMBDA_RUNTIME_API
const root = '/2018-06-01/runtime/'

class API {
  constructor () {
    const at = host.lastIndexOf(':')
    this.parts = []
    this.size = 0
    this.socket = net.connect({ host: host.slice(0, at), port: Number(host.slice(at + 1)), noDelay: true })
    this.socket.on('data', part => { this.parts.push(part); this.size += part.length; this.advance() })
    this.socket.on('close', () => process.exit(1)) // Milepost has gone, or wants this process to go
    this.socket.on('error', () => process.exit(1))
  }

  call (method, what, body, headers = '') {
    const data = body === undefined ? Buffer.alloc(0) : Buffer.from(body)
    this.socket.cork()
    this.socket.write(`${method} ${root}${what} HTTP/1.1\r\nHost: ${host}\r\nContent-Length: ${data.length}\r\n${headers}\r\n`)
    if (data.length) this.socket.write(data)
    this.socket.uncork()
    return new Promise(resolve => { this.waiting = { resolve } })
  }

  advance () {
    const w = this.waiting
    if (!w) return
    if (!w.headers) {
      const all = this.joined()
      const end = all.indexOf('\r\n\r\n')
      if (end < 0) return
      const lines = all.toString('latin1', 0, end).split('\r\n')
      w.status = Number(lines[0].split(' ')[1])
      w.headers = {}
      for (const line of lines.slice(1)) {
        const at = line.indexOf(':')
        w.headers[line.slice(0, at).toLowerCase()] = line.slice(at + 1).trim()
      }
      w.length = Number(w.headers['content-length'] ?? 0)
      this.parts = [all.subarray(end + 4)]
      this.size = all.length - end - 4
    }
    if (this.size < w.length) return
    const all = this.joined()
    this.parts = [all.subarray(w.length)]
    this.size = all.length - w.length
    this.waiting = undefined
    w.resolve({ status: w.status, headers: w.headers, body: all.subarray(0, w.length) })
  }

  joined () {
    if (this.parts.length !== 1) this.parts = [Buffer.concat(this.parts)]
    return this.parts[0]
  }
}

// console writes lines as Lambda does: time, request, level; a message of several lines stays one entry.
let requestId = 'undefined'
function setUpConsole () {
  for (const [name, level] of Object.entries({ log: 'INFO', info: 'INFO', debug: 'DEBUG', warn: 'WARN', error: 'ERROR', trace: 'TRACE' })) {
    const out = process.stdout
    console[name] = (...args) => {
      out.write(`${new Date().toISOString()}\t${requestId}\t${level}\t${util.format(...args).replace(/\n/g, '\r')}\n`)
    }
  }
}

function documentOf (err, type) {
  if (util.types.isNativeError(err) || err instanceof Error) {
    return { errorType: type ?? err.name ?? 'Error', errorMessage: String(err.message), trace: String(err.stack ?? '').split('\n') }
  }
  if (type) return { errorType: type, errorMessage: util.format(err), trace: [] }
  return { errorType: typeof err, errorMessage: typeof err === 'string' ? err : util.format('%j', err), trace: [] }
}

function named (type, message) {
  return Object.assign(new Error(message), { name: type })
}

const api = new API()
const errorHeaders = doc => `Content-Type: application/json\r\nLambda-Runtime-Function-Error-Type: ${String(doc.errorType).replace(/[^\x20-\x7e]/g, '?')}\r\n`

// Something has gone wrong outside of the handler's call: the invocation fails, and the process with it.
let running
async function die (err, type, code) {
  const doc = documentOf(err, type)
  console.error('Uncaught Exception', JSON.stringify(doc))
  const at = running ? `invocation/${running}/error` : 'init/error'
  running = undefined
  api.waiting = undefined
  await api.call('POST', at, JSON.stringify(doc), errorHeaders(doc))
  process.exit(code)
}

async function load () {
  const name = env._HANDLER
  const slash = name.lastIndexOf('/') + 1
  const dot = name.indexOf('.', slash)
  if (dot < 0) throw named('Runtime.MalformedHandlerName', `Bad handler ${name}`)
  const base = path.resolve(env.LAMBDA_TASK_ROOT, name.slice(0, dot))
  const file = ['.js', '.mjs', '.cjs', ''].map(e => base + e).find(f => fs.existsSync(f) && fs.statSync(f).isFile())
  if (!file) throw named('Runtime.ImportModuleError', `Error: Cannot find module '${name.slice(0, dot)}'`)
  let module
  try {
    module = await import(pathToFileURL(file).href)
  } catch (err) {
    if (err instanceof SyntaxError) throw Object.assign(err, { name: 'Runtime.UserCodeSyntaxError', message: `SyntaxError: ${err.message}` })
    if (err?.code === 'ERR_MODULE_NOT_FOUND' || err?.code === 'MODULE_NOT_FOUND') {
      throw Object.assign(err, { name: 'Runtime.ImportModuleError', message: `Error: ${err.message}` })
    }
    throw err
  }
  const find = from => name.slice(dot + 1).split('.').reduce((at, key) => at?.[key], from)
  const handler = find(module) ?? find(module.default) // a CommonJS module is the default export
  if (handler === undefined) throw named('Runtime.HandlerNotFound', `${name} is undefined or not exported`)
  if (typeof handler !== 'function') throw named('Runtime.HandlerNotFound', `${name} is not a function`)
  return handler
}

function contextOf (headers) {
  const deadline = Number(headers['lambda-runtime-deadline-ms'])
  const parse = text => {
    if (!text) return undefined
    try { return JSON.parse(text) } catch { return JSON.parse(Buffer.from(text, 'base64').toString()) }
  }
  return {
    callbackWaitsForEmptyEventLoop: true,
    functionName: env.AWS_LAMBDA_FUNCTION_NAME,
    functionVersion: env.AWS_LAMBDA_FUNCTION_VERSION,
    memoryLimitInMB: env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE,
    logGroupName: env.AWS_LAMBDA_LOG_GROUP_NAME,
    logStreamName: env.AWS_LAMBDA_LOG_STREAM_NAME,
    awsRequestId: headers['lambda-runtime-aws-request-id'],
    invokedFunctionArn: headers['lambda-runtime-invoked-function-arn'],
    identity: parse(headers['lambda-runtime-cognito-identity']),
    clientContext: parse(headers['lambda-runtime-client-context']),
    getRemainingTimeInMillis: () => Math.max(0, deadline - Date.now())
  }
}

// run settles when the function has answered: its promise, its callback (after which it may want the event loop to be empty), or an
// event loop that is empty although neither came, for which Lambda answers null.
function run (handler, event, context) {
  return new Promise((resolve, reject) => {
    let settled = false
    let answer = () => finish(null, null)
    const onEmpty = () => answer()
    const finish = (err, value) => {
      if (settled) return
      settled = true
      process.removeListener('beforeExit', onEmpty)
      api.socket.ref()
      if (err !== null && err !== undefined) reject(err)
      else resolve(value)
    }
    const callback = (err, value) => {
      if (context.callbackWaitsForEmptyEventLoop) answer = () => finish(err, value)
      else finish(err, value)
    }
    context.done = callback
    context.succeed = value => callback(null, value)
    context.fail = err => callback(err ?? new Error('handled'))
    process.on('beforeExit', onEmpty)
    api.socket.unref() // only the function's own work keeps the loop busy
    let result
    try {
      result = handler(event, context, callback)
    } catch (err) {
      finish(err)
      return
    }
    if (typeof result?.then === 'function') result.then(value => finish(null, value), err => finish(err ?? new Error('undefined')))
  })
}

async function main () {
  setUpConsole()
  process.on('uncaughtException', err => { die(err, undefined, 129) })
  process.on('unhandledRejection', err => { die(util.types.isNativeError(err) ? named('Runtime.UnhandledPromiseRejection', `${err.name}: ${err.message}`) : err, 'Runtime.UnhandledPromiseRejection', 128) })
  let handler
  try {
    handler = await load()
  } catch (err) {
    await die(err, undefined, 1)
  }
  for (;;) {
    const { status, headers, body } = await api.call('GET', 'invocation/next')
    if (status !== 200) process.exit(1)
    requestId = running = headers['lambda-runtime-aws-request-id']
    if (headers['lambda-runtime-trace-id']) env._X_AMZN_TRACE_ID = headers['lambda-runtime-trace-id']
    else delete env._X_AMZN_TRACE_ID
    const id = running
    let text, failed
    try {
      const value = await run(handler, JSON.parse(body.toString()), contextOf(headers))
      try {
        text = JSON.stringify(value === undefined ? null : value) ?? 'null'
      } catch (err) {
        throw named('Runtime.MarshalError', `Unable to stringify response body: ${err.message}`)
      }
    } catch (err) {
      failed = documentOf(err)
      console.error('Invoke Error', JSON.stringify(failed))
    }
    running = undefined
    if (failed) await api.call('POST', `invocation/${id}/error`, JSON.stringify(failed), errorHeaders(failed))
    else await api.call('POST', `invocation/${id}/response`, text, 'Content-Type: application/json\r\n')
  }
}

main()
