// Holds large payments from abroad until somebody has looked at them.
export const handler = async (event) => {
  const output = [];
  for (const record of event.Records) {
    const payment = JSON.parse(Buffer.from(record.kinesis.data, "base64").toString());
    if (payment.country !== "PT") {
      output.push({ key: payment.card, json: { id: payment.id, card: payment.card, action: "hold", amount: payment.amount } });
    }
  }
  return { output };
};
