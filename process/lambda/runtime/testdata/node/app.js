exports.handler = async (event, context) => {
  switch (event.do) {
    case 'echo': return event.value
    case 'context': return {
      id: context.awsRequestId, arn: context.invokedFunctionArn, name: context.functionName, version: context.functionVersion,
      memory: context.memoryLimitInMB, group: context.logGroupName, remaining: context.getRemainingTimeInMillis() <= 5000,
      custom: context.clientContext?.custom, cwd: process.cwd(), trace: process.env._X_AMZN_TRACE_ID
    }
    case 'raise': throw new TypeError('boom ü')
    case 'print': console.log('to stdout: grüße'); console.error('to stderr'); process.stdout.write('no newline'); return
    case 'huge': return 'x'.repeat(7 << 20)
    case 'stall': return new Promise(resolve => setTimeout(resolve, 60000))
    case 'never': return new Promise(() => {})
    case 'exit': process.exit(event.status); break
    case 'loose': setTimeout(() => { throw new RangeError('loose') }, 1); return new Promise(resolve => setTimeout(resolve, 60000))
    case 'rejected': Promise.reject(new RangeError('unheard')); return new Promise(resolve => setTimeout(resolve, 60000))
    case 'circular': { const a = {}; a.a = a; return a }
  }
}
exports.callback = (event, context, callback) => {
  if (event.do === 'fail') return callback(new Error('called back'))
  if (event.do === 'nothing') return
  let later = false
  setTimeout(() => { later = true }, 20)
  if (event.do === 'impatient') context.callbackWaitsForEmptyEventLoop = false
  callback(null, { get later () { return later } })
}
exports.nested = { deep: async () => 'deep' }
