const depots = { Lisboa: [38.72, -9.14], Porto: [41.15, -8.61], Faro: [37.02, -7.93] };

// Haversine, on a sphere of the Earth's mean radius.
const kilometres = ([a, b], [c, d]) => {
  const rad = (x) => (x * Math.PI) / 180;
  const h = Math.sin(rad(c - a) / 2) ** 2 + Math.cos(rad(a)) * Math.cos(rad(c)) * Math.sin(rad(d - b) / 2) ** 2;
  return 12742 * Math.asin(Math.sqrt(h));
};

export const handler = async (event) => ({
  output: event.Records.map((record) => {
    const { vehicle_id, lat, lon } = JSON.parse(Buffer.from(record.kinesis.data, "base64").toString());
    const [depot, km] = Object.entries(depots)
      .map(([name, place]) => [name, kilometres([lat, lon], place)])
      .sort((x, y) => x[1] - y[1])[0];
    return { key: vehicle_id, json: { vehicle_id, depot, km: Math.round(km) } };
  }),
});
